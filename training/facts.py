"""Write the demo's fact sentences from hand-made tables: forms of names per language, three wordings per relation.

python training/facts.py mi_multilingual/demo/facts.jsonl
"""

import json
import re
import sys
from pathlib import Path

# code | en | de (dative, then nominative where an article changes it) | es | fr with article | id | ja | ru nom, gen
#      | tr nom, gen, loc | vi | zh
COUNTRIES = """
fr|France|Frankreich|Francia|la France|Prancis|フランス|Франция,Франции|Fransa,Fransa'nın,Fransa'da|Pháp|法国
es|Spain|Spanien|España|l'Espagne|Spanyol|スペイン|Испания,Испании|İspanya,İspanya'nın,İspanya'da|Tây Ban Nha|西班牙
it|Italy|Italien|Italia|l'Italie|Italia|イタリア|Италия,Италии|İtalya,İtalya'nın,İtalya'da|Ý|意大利
de|Germany|Deutschland|Alemania|l'Allemagne|Jerman|ドイツ|Германия,Германии|Almanya,Almanya'nın,Almanya'da|Đức|德国
pl|Poland|Polen|Polonia|la Pologne|Polandia|ポーランド|Польша,Польши|Polonya,Polonya'nın,Polonya'da|Ba Lan|波兰
gr|Greece|Griechenland|Grecia|la Grèce|Yunani|ギリシャ|Греция,Греции|Yunanistan,Yunanistan'ın,Yunanistan'da|Hy Lạp|希腊
se|Sweden|Schweden|Suecia|la Suède|Swedia|スウェーデン|Швеция,Швеции|İsveç,İsveç'in,İsveç'te|Thụy Điển|瑞典
no|Norway|Norwegen|Noruega|la Norvège|Norwegia|ノルウェー|Норвегия,Норвегии|Norveç,Norveç'in,Norveç'te|Na Uy|挪威
dk|Denmark|Dänemark|Dinamarca|le Danemark|Denmark|デンマーク|Дания,Дании|Danimarka,Danimarka'nın,Danimarka'da|Đan Mạch|丹麦
hu|Hungary|Ungarn|Hungría|la Hongrie|Hungaria|ハンガリー|Венгрия,Венгрии|Macaristan,Macaristan'ın,Macaristan'da|Hungary|匈牙利
ro|Romania|Rumänien|Rumanía|la Roumanie|Rumania|ルーマニア|Румыния,Румынии|Romanya,Romanya'nın,Romanya'da|Romania|罗马尼亚
bg|Bulgaria|Bulgarien|Bulgaria|la Bulgarie|Bulgaria|ブルガリア|Болгария,Болгарии|Bulgaristan,Bulgaristan'ın,Bulgaristan'da|Bulgaria|保加利亚
pt|Portugal|Portugal|Portugal|le Portugal|Portugal|ポルトガル|Португалия,Португалии|Portekiz,Portekiz'in,Portekiz'de|Bồ Đào Nha|葡萄牙
at|Austria|Österreich|Austria|l'Autriche|Austria|オーストリア|Австрия,Австрии|Avusturya,Avusturya'nın,Avusturya'da|Áo|奥地利
ua|Ukraine|der Ukraine,die Ukraine|Ucrania|l'Ukraine|Ukraina|ウクライナ|Украина,Украины|Ukrayna,Ukrayna'nın,Ukrayna'da|Ukraina|乌克兰
cz|Czechia|Tschechien|Chequia|la Tchéquie|Ceko|チェコ|Чехия,Чехии|Çekya,Çekya'nın,Çekya'da|Séc|捷克
is|Iceland|Island|Islandia|l'Islande|Islandia|アイスランド|Исландия,Исландии|İzlanda,İzlanda'nın,İzlanda'da|Iceland|冰岛
jp|Japan|Japan|Japón|le Japon|Jepang|日本|Япония,Японии|Japonya,Japonya'nın,Japonya'da|Nhật Bản|日本
cn|China|China|China|la Chine|Tiongkok|中国|Китай,Китая|Çin,Çin'in,Çin'de|Trung Quốc|中国
th|Thailand|Thailand|Tailandia|la Thaïlande|Thailand|タイ|Таиланд,Таиланда|Tayland,Tayland'ın,Tayland'da|Thái Lan|泰国
vn|Vietnam|Vietnam|Vietnam|le Viêt Nam|Vietnam|ベトナム|Вьетнам,Вьетнама|Vietnam,Vietnam'ın,Vietnam'da|Việt Nam|越南
ir|Iran|dem Iran,der Iran|Irán|l'Iran|Iran|イラン|Иран,Ирана|İran,İran'ın,İran'da|Iran|伊朗
iq|Iraq|dem Irak,der Irak|Irak|l'Irak|Irak|イラク|Ирак,Ирака|Irak,Irak'ın,Irak'ta|Iraq|伊拉克
sy|Syria|Syrien|Siria|la Syrie|Suriah|シリア|Сирия,Сирии|Suriye,Suriye'nin,Suriye'de|Syria|叙利亚
sa|Saudi Arabia|Saudi-Arabien|Arabia Saudita|l'Arabie saoudite|Arab Saudi|サウジアラビア|Саудовская Аравия,Саудовской Аравии|Suudi Arabistan,Suudi Arabistan'ın,Suudi Arabistan'da|Ả Rập Xê Út|沙特阿拉伯
mn|Mongolia|der Mongolei,die Mongolei|Mongolia|la Mongolie|Mongolia|モンゴル|Монголия,Монголии|Moğolistan,Moğolistan'ın,Moğolistan'da|Mông Cổ|蒙古
kh|Cambodia|Kambodscha|Camboya|le Cambodge|Kamboja|カンボジア|Камбоджа,Камбоджи|Kamboçya,Kamboçya'nın,Kamboçya'da|Campuchia|柬埔寨
bd|Bangladesh|Bangladesch|Bangladés|le Bangladesh|Bangladesh|バングラデシュ|Бангладеш,Бангладеш|Bangladeş,Bangladeş'in,Bangladeş'te|Bangladesh|孟加拉国
eg|Egypt|Ägypten|Egipto|l'Égypte|Mesir|エジプト|Египет,Египта|Mısır,Mısır'ın,Mısır'da|Ai Cập|埃及
ma|Morocco|Marokko|Marruecos|le Maroc|Maroko|モロッコ|Марокко,Марокко|Fas,Fas'ın,Fas'ta|Maroc|摩洛哥
ly|Libya|Libyen|Libia|la Libye|Libya|リビア|Ливия,Ливии|Libya,Libya'nın,Libya'da|Libya|利比亚
ao|Angola|Angola|Angola|l'Angola|Angola|アンゴラ|Ангола,Анголы|Angola,Angola'nın,Angola'da|Angola|安哥拉
so|Somalia|Somalia|Somalia|la Somalie|Somalia|ソマリア|Сомали,Сомали|Somali,Somali'nin,Somali'de|Somalia|索马里
ar|Argentina|Argentinien|Argentina|l'Argentine|Argentina|アルゼンチン|Аргентина,Аргентины|Arjantin,Arjantin'in,Arjantin'de|Argentina|阿根廷
cl|Chile|Chile|Chile|le Chili|Chili|チリ|Чили,Чили|Şili,Şili'nin,Şili'de|Chile|智利
pe|Peru|Peru|Perú|le Pérou|Peru|ペルー|Перу,Перу|Peru,Peru'nun,Peru'da|Peru|秘鲁
co|Colombia|Kolumbien|Colombia|la Colombie|Kolombia|コロンビア|Колумбия,Колумбии|Kolombiya,Kolombiya'nın,Kolombiya'da|Colombia|哥伦比亚
ve|Venezuela|Venezuela|Venezuela|le Venezuela|Venezuela|ベネズエラ|Венесуэла,Венесуэлы|Venezuela,Venezuela'nın,Venezuela'da|Venezuela|委内瑞拉
cu|Cuba|Kuba|Cuba|Cuba|Kuba|キューバ|Куба,Кубы|Küba,Küba'nın,Küba'da|Cuba|古巴
jm|Jamaica|Jamaika|Jamaica|la Jamaïque|Jamaika|ジャマイカ|Ямайка,Ямайки|Jamaika,Jamaika'nın,Jamaika'da|Jamaica|牙买加
"""

# code | en | de | es | fr | id | ja | ru | tr | vi | zh
CAPITALS = """
fr|Paris|Paris|París|Paris|Paris|パリ|Париж|Paris|Paris|巴黎
es|Madrid|Madrid|Madrid|Madrid|Madrid|マドリード|Мадрид|Madrid|Madrid|马德里
it|Rome|Rom|Roma|Rome|Roma|ローマ|Рим|Roma|Rôma|罗马
de|Berlin|Berlin|Berlín|Berlin|Berlin|ベルリン|Берлин|Berlin|Berlin|柏林
pl|Warsaw|Warschau|Varsovia|Varsovie|Warsawa|ワルシャワ|Варшава|Varşova|Vácsava|华沙
gr|Athens|Athen|Atenas|Athènes|Athena|アテネ|Афины|Atina|Athens|雅典
se|Stockholm|Stockholm|Estocolmo|Stockholm|Stockholm|ストックホルム|Стокгольм|Stockholm|Stockholm|斯德哥尔摩
no|Oslo|Oslo|Oslo|Oslo|Oslo|オスロ|Осло|Oslo|Oslo|奥斯陆
dk|Copenhagen|Kopenhagen|Copenhague|Copenhague|Kopenhagen|コペンハーゲン|Копенгаген|Kopenhag|Copenhagen|哥本哈根
hu|Budapest|Budapest|Budapest|Budapest|Budapest|ブダペスト|Будапешт|Budapeşte|Budapest|布达佩斯
ro|Bucharest|Bukarest|Bucarest|Bucarest|Bukares|ブカレスト|Бухарест|Bükreş|Bucharest|布加勒斯特
bg|Sofia|Sofia|Sofía|Sofia|Sofia|ソフィア|София|Sofya|Sofia|索非亚
pt|Lisbon|Lissabon|Lisboa|Lisbonne|Lisbon|リスボン|Лиссабон|Lizbon|Lisboa|里斯本
at|Vienna|Wien|Viena|Vienne|Wina|ウィーン|Вена|Viyana|Viên|维也纳
ua|Kyiv|Kiew|Kiev|Kiev|Kyiv|キーウ|Киев|Kiev|Kyiv|基辅
cz|Prague|Prag|Praga|Prague|Praha|プラハ|Прага|Prag|Praha|布拉格
is|Reykjavik|Reykjavik|Reikiavik|Reykjavik|Reykjavik|レイキャビク|Рейкьявик|Reykjavik|Reykjavik|雷克雅未克
jp|Tokyo|Tokio|Tokio|Tokyo|Tokyo|東京|Токио|Tokyo|Tokyo|东京
cn|Beijing|Peking|Pekín|Pékin|Beijing|北京|Пекин|Pekin|Bắc Kinh|北京
th|Bangkok|Bangkok|Bangkok|Bangkok|Bangkok|バンコク|Бангкок|Bangkok|Bangkok|曼谷
vn|Hanoi|Hanoi|Hanói|Hanoï|Hanoi|ハノイ|Ханой|Hanoi|Hà Nội|河内
ir|Tehran|Teheran|Teherán|Téhéran|Teheran|テヘラン|Тегеран|Tahran|Tehran|德黑兰
iq|Baghdad|Bagdad|Bagdad|Bagdad|Baghdad|バグダッド|Багдад|Bağdat|Baghdad|巴格达
sy|Damascus|Damaskus|Damasco|Damas|Damaskus|ダマスカス|Дамаск|Şam|Damascus|大马士革
sa|Riyadh|Riad|Riad|Riyad|Riyadh|リヤド|Эр-Рияд|Riyad|Riyadh|利雅得
mn|Ulaanbaatar|Ulaanbaatar|Ulán Bator|Oulan-Bator|Ulan Bator|ウランバートル|Улан-Батор|Ulanbator|Ulaanbaatar|乌兰巴托
kh|Phnom Penh|Phnom Penh|Nom Pen|Phnom Penh|Phnom Penh|プノンペン|Пномпень|Phnom Penh|Phnôm Pênh|金边
bd|Dhaka|Dhaka|Daca|Dacca|Dhaka|ダッカ|Дакка|Dakka|Dhaka|达卡
eg|Cairo|Kairo|El Cairo|Le Caire|Kairo|カイロ|Каир|Kahire|Cairo|开罗
ma|Rabat|Rabat|Rabat|Rabat|Rabat|ラバト|Рабат|Rabat|Rabat|拉巴特
ly|Tripoli|Tripolis|Trípoli|Tripoli|Tripoli|トリポリ|Триполи|Trablus|Tripoli|的黎波里
ao|Luanda|Luanda|Luanda|Luanda|Luanda|ルアンダ|Луанда|Luanda|Luanda|罗安达
so|Mogadishu|Mogadischu|Mogadiscio|Mogadiscio|Mogadishu|モガディシュ|Могадишо|Mogadişu|Mogadishu|摩加迪沙
ar|Buenos Aires|Buenos Aires|Buenos Aires|Buenos Aires|Buenos Aires|ブエノスアイレス|Буэнос-Айрес|Buenos Aires|Buenos Aires|布宜诺斯艾利斯
cl|Santiago|Santiago|Santiago|Santiago|Santiago|サンティアゴ|Сантьяго|Santiago|Santiago|圣地亚哥
pe|Lima|Lima|Lima|Lima|Lima|リマ|Лима|Lima|Lima|利马
co|Bogotá|Bogotá|Bogotá|Bogota|Bogota|ボゴタ|Богота|Bogota|Bogotá|波哥大
ve|Caracas|Caracas|Caracas|Caracas|Caracas|カラカス|Каракас|Karakas|Caracas|加拉加斯
cu|Havana|Havanna|La Habana|La Havane|Havana|ハバナ|Гавана|Havana|La Habana|哈瓦那
jm|Kingston|Kingston|Kingston|Kingston|Kingston|キングストン|Кингстон|Kingston|Kingston|金斯敦
"""

TONGUES = """
French|Französisch|francés|le français|Prancis|フランス語|французский|Fransızca|Pháp|法语|fr
Spanish|Spanisch|español|l'espagnol|Spanyol|スペイン語|испанский|İspanyolca|Tây Ban Nha|西班牙语|es ar cl pe co ve cu
Italian|Italienisch|italiano|l'italien|Italia|イタリア語|итальянский|İtalyanca|Ý|意大利语|it
German|Deutsch|alemán|l'allemand|Jerman|ドイツ語|немецкий|Almanca|Đức|德语|de at
Polish|Polnisch|polaco|le polonais|Polandia|ポーランド語|польский|Lehçe|Ba Lan|波兰语|pl
Greek|Griechisch|griego|le grec|Yunani|ギリシャ語|греческий|Yunanca|Hy Lạp|希腊语|gr
Swedish|Schwedisch|sueco|le suédois|Swedia|スウェーデン語|шведский|İsveççe|Thụy Điển|瑞典语|se
Norwegian|Norwegisch|noruego|le norvégien|Norwegia|ノルウェー語|норвежский|Norveççe|Na Uy|挪威语|no
Danish|Dänisch|danés|le danois|Denmark|デンマーク語|датский|Danca|Đan Mạch|丹麦语|dk
Hungarian|Ungarisch|húngaro|le hongrois|Hungaria|ハンガリー語|венгерский|Macarca|Hungary|匈牙利语|hu
Romanian|Rumänisch|rumano|le roumain|Rumania|ルーマニア語|румынский|Rumence|Romania|罗马尼亚语|ro
Bulgarian|Bulgarisch|búlgaro|le bulgare|Bulgaria|ブルガリア語|болгарский|Bulgarca|Bulgaria|保加利亚语|bg
Portuguese|Portugiesisch|portugués|le portugais|Portugis|ポルトガル語|португальский|Portekizce|Bồ Đào Nha|葡萄牙语|pt ao
Ukrainian|Ukrainisch|ucraniano|l'ukrainien|Ukraina|ウクライナ語|украинский|Ukraynaca|Ukraina|乌克兰语|ua
Czech|Tschechisch|checo|le tchèque|Ceko|チェコ語|чешский|Çekçe|Séc|捷克语|cz
Icelandic|Isländisch|islandés|l'islandais|Islandia|アイスランド語|исландский|İzlandaca|Iceland|冰岛语|is
Japanese|Japanisch|japonés|le japonais|Jepang|日本語|японский|Japonca|Nhật|日语|jp
Chinese|Chinesisch|chino|le chinois|Tionghoa|中国語|китайский|Çince|Trung|汉语|cn
Thai|Thailändisch|tailandés|le thaï|Thai|タイ語|тайский|Tayca|Thái|泰语|th
Vietnamese|Vietnamesisch|vietnamita|le vietnamien|Vietnam|ベトナム語|вьетнамский|Vietnamca|Việt|越南语|vn
Persian|Persisch|persa|le persan|Persia|ペルシア語|персидский|Farsça|Ba Tư|波斯语|ir
Arabic|Arabisch|árabe|l'arabe|Arab|アラビア語|арабский|Arapça|Ả Rập|阿拉伯语|iq sy sa eg ma ly
Mongolian|Mongolisch|mongol|le mongol|Mongolia|モンゴル語|монгольский|Moğolca|Mông Cổ|蒙古语|mn
Khmer|Khmer|jemer|le khmer|Khmer|クメール語|кхмерский|Kmerce|Khmer|高棉语|kh
Bengali|Bengalisch|bengalí|le bengali|Benggala|ベンガル語|бенгальский|Bengalce|Bengal|孟加拉语|bd
Somali|Somali|somalí|le somali|Somali|ソマリ語|сомалийский|Somalice|Somali|索马里语|so
English|Englisch|inglés|l'anglais|Inggris|英語|английский|İngilizce|Anh|英语|jm
"""

CONTINENTS = """
Europe|Europa|Europa|l'Europe|Eropa|ヨーロッパ|Европа|Avrupa|châu Âu|欧洲|fr es it de pl gr se no dk hu ro bg pt at ua cz is
Asia|Asien|Asia|l'Asie|Asia|アジア|Азия|Asya|châu Á|亚洲|jp cn th vn ir iq sy sa mn kh bd
Africa|Afrika|África|l'Afrique|Afrika|アフリカ|Африка|Afrika|châu Phi|非洲|eg ma ly ao so
South America|Südamerika|América del Sur|l'Amérique du Sud|Amerika Selatan|南アメリカ|Южная Америка|Güney Amerika|Nam Mỹ|南美洲|ar cl pe co ve
North America|Nordamerika|América del Norte|l'Amérique du Nord|Amerika Utara|北アメリカ|Северная Америка|Kuzey Amerika|Bắc Mỹ|北美洲|cu jm
"""

LANGUAGES = ("en", "de", "es", "fr", "id", "ja", "ru", "tr", "vi", "zh")

# {n} nominative, {N} the same at the start of a sentence, {d} German dative, {de} French genitive, {En} French "in",
# {g} genitive, {l} Turkish locative; "_" stands for the answer.
WORDINGS = {
    "en": {
        "capital": [
            "The capital of {n} is _.",
            "If you travel to the capital of {n}, you arrive in _.",
            "{n} has its capital in _.",
        ],
        "language": [
            "The main language of {n} is _.",
            "Most people in {n} speak _.",
            "If you live in {n}, you mostly hear _.",
        ],
        "continent": [
            "{n} lies on the continent of _.",
            "On a map of the world, you find {n} in _.",
            "The continent of {n} is _.",
        ],
    },
    "de": {
        "capital": [
            "Die Hauptstadt von {d} heißt _.",
            "Wer in die Hauptstadt von {d} reist, kommt nach _.",
            "In {d} ist die Hauptstadt _.",
        ],
        "language": [
            "Die wichtigste Sprache in {d} ist _.",
            "Die meisten Menschen in {d} sprechen _.",
            "Wer in {d} lebt, hört meistens _.",
        ],
        "continent": [
            "{N} liegt auf dem Kontinent _.",
            "Der Kontinent, zu dem {n} gehört, heißt _.",
            "{N} gehört zu _.",
        ],
    },
    "es": {
        "capital": [
            "La capital de {n} es _.",
            "Quien viaja a la capital de {n} llega a _.",
            "En {n}, la capital se llama _.",
        ],
        "language": [
            "El idioma principal de {n} es el _.",
            "La mayoría de la gente en {n} habla _.",
            "Quien vive en {n} oye sobre todo el _.",
        ],
        "continent": [
            "{n} se encuentra en _.",
            "El continente al que pertenece {n} es _.",
            "En el mapa del mundo, {n} aparece en _.",
        ],
    },
    "fr": {
        "capital": [
            "La capitale {de} est _.",
            "Quand on visite {n}, on découvre sa capitale, _.",
            "{En}, la capitale s'appelle _.",
        ],
        "language": [
            "La langue principale {de} est _.",
            "La plupart des habitants {de} parlent _.",
            "{En}, on entend surtout _.",
        ],
        "continent": [
            "Le continent {de} est _.",
            "Sur la carte du monde, {n} fait partie de _.",
            "{N} appartient à _.",
        ],
    },
    "id": {
        "capital": [
            "Ibu kota {n} adalah _.",
            "Orang yang bepergian ke ibu kota {n} akan tiba di _.",
            "Di {n}, ibu kotanya bernama _.",
        ],
        "language": [
            "Bahasa utama di {n} adalah bahasa _.",
            "Kebanyakan orang di {n} berbicara dalam bahasa _.",
            "Siapa yang tinggal di {n} biasanya mendengar bahasa _.",
        ],
        "continent": [
            "{n} terletak di benua _.",
            "Di peta dunia, {n} berada di _.",
            "Benua tempat {n} berada adalah _.",
        ],
    },
    "ja": {
        "capital": [
            "{n}の首都は_です。",
            "{n}という国の首都の名前は_といいます。",
            "{n}を旅して首都を訪れると、そこは_です。",
        ],
        "language": [
            "{n}の主な言語は_です。",
            "{n}の人々の多くは_を話します。",
            "{n}に住んでいると、よく耳にするのは_です。",
        ],
        "continent": ["{n}がある大陸は_です。", "世界地図で{n}を探すと、見つかるのは_です。", "{n}は_にあります。"],
    },
    "ru": {
        "capital": [
            "Столица {g} — _.",
            "Город, который является столицей {g}, называется _.",
            "Столицей {g} является город _.",
        ],
        "language": [
            "Основной язык {g} — _.",
            "Язык, на котором говорит большинство жителей {g}, — _.",
            "Главным языком {g} считается _.",
        ],
        "continent": [
            "Часть света, где находится {n}, — _.",
            "На карте мира {n} относится к части света _.",
            "Часть света {g} — _.",
        ],
    },
    "tr": {
        "capital": [
            "{g} başkenti _ şehridir.",
            "Bir gezgin {g} başkentine giderse vardığı şehir _ olur.",
            "{l} başkentin adı _.",
        ],
        "language": ["{g} ana dili _.", "{l} insanların çoğu _ konuşur.", "{l} yaşayanlar en çok _ duyar."],
        "continent": [
            "{g} bulunduğu kıta _.",
            "Dünya haritasında {n}, _ kıtasında yer alır.",
            "{n} ülkesi _ kıtasındadır.",
        ],
    },
    "vi": {
        "capital": [
            "Thủ đô của {n} là _.",
            "Ai đi đến thủ đô của {n} sẽ tới thành phố _.",
            "Ở {n}, thủ đô có tên là _.",
        ],
        "language": [
            "Ngôn ngữ chính của {n} là tiếng _.",
            "Hầu hết người dân ở {n} nói tiếng _.",
            "Ai sống ở {n} thường nghe tiếng _.",
        ],
        "continent": ["{n} nằm ở _.", "Trên bản đồ thế giới, {n} thuộc về _.", "Châu lục có nước {n} là _."],
    },
    "zh": {
        "capital": ["{n}的首都是_。", "去{n}首都旅行的人会到达_。", "在{n}，首都叫做_。"],
        "language": ["{n}的主要语言是_。", "{n}的大多数人说_。", "住在{n}的人最常听到的是_。"],
        "continent": ["{n}位于_。", "在世界地图上，{n}属于_。", "{n}所在的大洲是_。"],
    },
}


def rows(table: str) -> list[list[str]]:
    return [line.split("|") for line in table.strip().splitlines()]


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def forms(language: str, cell: str) -> dict[str, str]:
    """The grammatical forms of a country's name that the wordings of the language need."""
    parts = cell.split(",")
    n = parts[0]
    if language == "de":
        return {"d": n, "n": parts[-1], "N": capitalised(parts[-1])}
    if language == "fr":
        bare = n.removeprefix("la ").removeprefix("le ").removeprefix("l'")
        of = {"la ": "de la ", "le ": "du ", "l'": "de l'"}.get(n[: len(n) - len(bare)], "de ")
        within = {"la ": "en ", "le ": "au ", "l'": "en "}.get(n[: len(n) - len(bare)], "à ")
        return {"n": n, "N": capitalised(n), "de": of + bare, "En": capitalised(within) + bare}
    return {"n": n, "g": parts[1] if len(parts) > 1 else n, "l": parts[2] if len(parts) > 2 else n}


def name_in(prompt: str, language: str, cell: str) -> str:
    """The country's name as it stands in the prompt, without an article and without a Turkish ending."""
    forms = cell.split(",")[:1] if language == "tr" else cell.split(",")  # endings stand behind an apostrophe
    bare = [re.sub(r"^(la |le |l'|der |die |dem )", "", form) for form in forms]
    return max((name for name in bare if name in prompt), key=len)


def answers() -> dict[str, dict[str, list[str]]]:
    """relation -> country -> the answer in each language."""
    shared = {
        relation: {code: row[:-1] for row in rows(table) for code in row[-1].split()}
        for relation, table in (("language", TONGUES), ("continent", CONTINENTS))
    }
    return {"capital": {row[0]: row[1:] for row in rows(CAPITALS)}, **shared}


def facts() -> list[dict[str, object]]:
    """One row a country, relation, wording and language: name in the prompt, prompt, answer and what follows it."""
    table, known = [], answers()
    for country in rows(COUNTRIES):
        for k, language in enumerate(LANGUAGES):
            for relation, wordings in WORDINGS[language].items():
                for i, wording in enumerate(wordings):
                    before, after = wording.split("_")
                    prompt = before.format(**forms(language, country[k + 1])).rstrip()
                    prompt = prompt.replace("von dem ", "vom ").replace("In dem ", "Im ").replace(" in dem ", " im ")
                    answer = known[relation][country[0]][k]
                    row = {"country": country[0], "relation": relation, "wording": i, "lang": language}
                    subject = name_in(prompt, language, country[k + 1])
                    table.append({**row, "subject": subject, "prompt": prompt, "answer": answer, "tail": after})
    return table


if __name__ == "__main__":
    lines = [json.dumps(row, ensure_ascii=False) for row in facts()]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
